# Its place makes pytest put this folder on the path, so that tests in all folders share devices.py.
