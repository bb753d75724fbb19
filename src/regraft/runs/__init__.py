"""Run folders: their files, the schemas of these, the summary of a run."""
