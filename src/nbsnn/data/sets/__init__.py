"""One data set in each file, found by the file's name; each defines `DATA_SET`, a `nbsnn.data.DataSet`."""
