"""When and where stages run: the Prefect flow and the command line."""
