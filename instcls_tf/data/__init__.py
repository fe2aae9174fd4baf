"""Images with stable instance ids: where they come from, how views are made, how batches reach the workers."""
