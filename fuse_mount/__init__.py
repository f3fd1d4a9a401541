"""The POSIX view of a bucket or a snapshot: what does a process see?"""
