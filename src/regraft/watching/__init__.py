"""Pages and trackers that follow a running job, from run files only. No file here imports torch.

following.py  the present state of a run folder: curves, best epoch so far, time left
resources.py  resources that the job's processes use, by psutil
runs.py       the run folders below a folder
pages.py      the two applications
tracking.py   a run in TensorBoard, MLflow or another tracker
static/       HTML, CSS and scripts of the pages
"""
