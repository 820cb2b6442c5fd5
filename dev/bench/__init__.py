"""`make bench`: what this program costs, in ratios of two things that are measured in turns in the same run."""
