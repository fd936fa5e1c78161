"""A/B experiments on the search service (extra `online`).

assignment      users -> arms, by hash; the experiment that a service runs
events          impressions and clicks
event_log       records and counts them in a database
database        SQLite or PostgreSQL, with append-only tables
aggregates      sums over users by arm, computed in the database
estimates       click-through rates and lift, with fixed and always-valid intervals
power           plan and sample size
validity        sample ratio mismatch and other warnings
arm_comparison  each arm against the control
report          all of it; experiment_tables prints it
simulation      experiments whose true lift is known
"""
