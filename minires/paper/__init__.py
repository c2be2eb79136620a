"""The experiments of the paper, run again, and the tables and figures made from their files."""
