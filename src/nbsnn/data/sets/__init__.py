"""One data set per file, with the file's name; each file defines `DATA_SET`, a `nbsnn.data.DataSet`."""
