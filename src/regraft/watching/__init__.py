"""Pages that follow a running job and list the runs of a folder, from run files alone. Nothing here
imports torch.

    files.py      read a file that another process is writing, and that may be anything
    following.py  what a run folder says now: its state, curves, the best so far, the time left
    resources.py  what the job's processes use, by psutil
    runs.py       the run folders below a folder
    pages.py      the two applications
    static/       their HTML, CSS and scripts
"""
