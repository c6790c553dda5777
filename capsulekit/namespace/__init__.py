"""The shell that runs in a build's own namespaces: apart.sh starts a program there, inside.lib.sh enters a root."""
