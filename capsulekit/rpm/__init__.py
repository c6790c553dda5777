"""RPM distributions: dnf chooses, downloads and installs, rpm checks."""
