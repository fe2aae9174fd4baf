"""Finding: images like a query, copies, leaks between splits, outliers."""
