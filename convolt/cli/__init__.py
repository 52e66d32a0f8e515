"""The command line: arguments → configuration → call. One file per verb; nothing here computes."""
