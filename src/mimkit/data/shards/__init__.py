"""Images in shards: tar and parquet files, local or at URLs through a bounded cache, and saved data sets."""
