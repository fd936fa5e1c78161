"""From tables to batches. What the river and a config name stands here; how it is done, in the rooms.

    manifest, protocol            two tables -> checked rows, in splits
    checked, prepared             rows -> shard sets, whole or not there; progress tells how far
    order, grouped, weighted      which rows meet in which batch
    stream, skipping              shard sets -> samples, and what to do where one cannot be read
    collate, transforms, slots    samples -> batches, and how they come from the loader's workers
    fetching, shard_cache         how files come over a network: pictures, shards

    places/     paths and addresses, what is brought here from them, and how much of it is kept
    pictures/   one picture, wherever it lies: fetched, read, decoded
    tables/     rows of tables: opened, parsed, told what is wrong with them, collected
    sources/    a class for each kind of data set; synthetic/ draws one
    check/      is it fit to train on?
    shards/     shard sets, read: at random, by id, here or at an address
    writing/    shard sets, written: by processes or by a cluster, gone on with, verified
    dealing/    what orders are made of: lanes of windows, rows of one product side by side
    mixing/     several sets in one stream

Modules that a config names by `_target_` keep their path: run ids and checkpoints hold it. `tests/test_house.py` says
which room may know which.
"""
