"""The pages of runs: the report of one, the comparison of several, the results of a sweep."""
