"""Evaluations after they were made: records on disk, comparison of runs, figures and HTML pages.

record           scores, ranks and hits of every query, in a run's folder
embeddings       of an evaluation, for fusion sweeps and maps
run_groups       runs that differ only in seed or fold
comparison/      differences between run groups, paired by query
segments         metrics by segment of queries, for results.json
tracked_queries  hits of a few queries from validation pass to pass
fusion_sweep     weights of a fusion, after training
figures/         curves, losses, hits, embedding maps (extra `figures`)
html/            report of a run, comparison, validation of a manifest
workspace        a W&B workspace as code (extra `dashboard`)
"""
