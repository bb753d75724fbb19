"""``regraft tune``: a search over the ranges that a plan names, in a study that workers share."""
