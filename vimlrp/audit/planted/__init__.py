"""A benchmark of audits: classifiers that rely on artifacts because they were planted.

A run plants artifacts in some classes of a set of pictures (`plans`, `planting`), trains a small
classifier on it (`training`), audits it as a user would, and compares what the audit says with what
was planted (`running`, `measures`). Nothing is downloaded.
"""
