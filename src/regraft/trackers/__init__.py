"""One program that shows training curves a file; found by its name, see regraft.plugins and regraft.types.Tracker."""
