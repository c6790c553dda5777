"""Services around the master: what their configuration has to say, as changes to be shown and written (sitefiles)."""
