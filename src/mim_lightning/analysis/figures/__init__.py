"""Figures of runs; matplotlib and scikit-learn are the extra `figures`, the figure of hits needs neither."""
