"""Rows cut along the sequence over several processes: `plan` says who needs what, `attend_shard` attends."""
