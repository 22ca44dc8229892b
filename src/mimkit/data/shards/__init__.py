"""Images in shards: tar, parquet and saved data sets, here or at URLs, kept in a bounded cache."""
