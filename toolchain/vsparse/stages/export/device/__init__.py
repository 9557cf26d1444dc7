"""The script that runs on a device, in parts; `bundle` joins them to one standard-library file for Python 3.8 and newer."""
