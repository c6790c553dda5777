# shellcheck shell=sh
# The capsule's provision scripts and the activated modules' scripts, together, in the order of their numbers.
# needs: cut mkdir rm sed sh sort tail wc

SCRIPTS=$RUN/scripts
DATA=$RUN/data

scripts_list() { # lines: NN NAME FILE MODULE required|optional
    {
        sed -n 's/^script init \([0-9]*\) \([^ ]*\) \([^ ]*\) \([0-9a-f]*\) [0-9]* \([a-z]*\)$/\1 \2 \4 \3 \5/p' "$PLAN" |
            while read -r list_nn list_name list_digest list_module list_need; do
                printf '%s %s %s %s %s\n' "$list_nn" "${list_name#"$list_nn"-}" "$SCRIPTS/$list_digest" "$list_module" "$list_need"
            done
        sed -n 's|^provision \(provision/init/\)\([0-9]*\)-\([^ /]*\)$|\2 \3 \1\2-\3|p' "$PLAN" |
            while read -r list_nn list_name list_path; do
                printf '%s %s %s vnfs required\n' "$list_nn" "$list_name" "$CAPSULE/$list_path"
            done
    } | sort -k1,1n -k2,2 -k4,4
}

get_scripts() { # all of them, and the modules' data, before the first one runs
    umask 077
    rm -rf "$DATA"
    mkdir -p "$SCRIPTS" "$DATA"
    scripts_wanted >"$RUN/scripts.wanted"
    cut -d' ' -f1,3,4 "$RUN/scripts.wanted" | prefetch script
    while read -r get_target get_name get_digest get_size <&3; do
        take_file "$get_target" "$get_name" "$get_digest" "$get_size" script
    done 3<"$RUN/scripts.wanted"
    scripts_list >"$RUN/scripts.list"
    detail "$(wc -l <"$RUN/scripts.list") scripts"
}

scripts_wanted() { # lines: TARGET NAME DIGEST SIZE
    while read -r want_kind want_a want_b want_c want_d want_e want_f _; do
        case $want_kind in
            # a=state b=order c=name d=module e=digest f=size
            script) [ "$want_a" != init ] || printf '%s\n' "$SCRIPTS/$want_e $want_d/$want_c $want_e $want_f" ;;
            # a=module b=name c=digest d=size
            data) printf '%s\n' "$DATA/$want_a/$want_b $want_a/$want_b $want_c $want_d" ;;
        esac
        : "$want_b"
    done <"$PLAN"
}

script_environment() { # MODULE: what every script may rely on
    NODEID=$(plan_value nodeid)
    HOSTNAME=$(plan_value hostname)
    CLUSTER=$(plan_value cluster)
    [ "$CLUSTER" != - ] || CLUSTER=
    NODENAME=$HOSTNAME${CLUSTER:+.$CLUSTER}
    GROUPNAME=$(plan_value group)
    [ "$GROUPNAME" != - ] || GROUPNAME=
    VNFS=$(plan_value vnfs)
    STATE=init
    MODULE_DATA=$DATA/$1
    export NODEID NODENAME HOSTNAME CLUSTER GROUPNAME VNFS STATE NEWROOT MODULE_DATA
}

run_script() { # FILE MODULE LOG: a process of its own, nothing on its input, output kept
    (
        umask 077
        mkdir -p "$DATA/$2"
        umask 022
        script_environment "$2"
        cd /
        if [ "$DEBUG" -gt 0 ]; then exec sh -x "$1"; else exec sh "$1"; fi
    ) </dev/null >"$3" 2>&1
}

run_scripts() {
    mkdir -p "$RUN/log"
    scripts_failed=
    while read -r run_nn run_name run_file run_module run_need <&3; do
        run_log=$RUN/log/$run_nn-$run_name
        run_status=0
        run_script "$run_file" "$run_module" "$run_log" || run_status=$?
        [ "$run_status" -ne 0 ] || continue
        run_text="script $run_nn-$run_name ($run_module): status $run_status: $(printable "$(tail -n 1 "$run_log")")"
        show_end_of "$run_log"
        [ "$run_need" = optional ] || fail "$run_text"
        say "$run_text (optional, going on)"
        scripts_failed="$scripts_failed, failed but optional: $run_nn-$run_name"
    done 3<"$RUN/scripts.list"
    detail "$(wc -l <"$RUN/scripts.list") scripts$scripts_failed"
}
