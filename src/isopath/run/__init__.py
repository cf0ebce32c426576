"""Run folders, configs, data files and the report."""
