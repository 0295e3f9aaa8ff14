"""The page of the ops listener in Chromium; `make test-browser`."""
