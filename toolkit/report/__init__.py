"""Every picture and page: of an evaluation and of a dataset. Numbers come from below."""
