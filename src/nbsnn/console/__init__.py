"""Console output. Results are printed to standard output, everything else to standard error."""

from nbsnn.console.dashboard import below_the_bar, fitting_rows
from nbsnn.console.flags import Flag
from nbsnn.console.layout import show_table
from nbsnn.console.progress import as_fit, doing, download_progress, figures_bar, image_progress, layer_progress
from nbsnn.console.results import (
    COMPARISON_COLUMNS,
    change_line,
    comparison_rows,
    or_dash,
    show_comparisons,
    show_figures,
    show_finetuning,
    show_layers,
    show_mapping,
    show_phases,
    show_units,
)
from nbsnn.console.screen import exit_code, note, say, show_json, speak_on_main_only

__all__ = [
    "COMPARISON_COLUMNS",
    "Flag",
    "as_fit",
    "below_the_bar",
    "change_line",
    "comparison_rows",
    "doing",
    "download_progress",
    "exit_code",
    "figures_bar",
    "fitting_rows",
    "image_progress",
    "layer_progress",
    "note",
    "or_dash",
    "say",
    "show_comparisons",
    "show_figures",
    "show_finetuning",
    "show_json",
    "show_layers",
    "show_mapping",
    "show_phases",
    "show_table",
    "show_units",
    "speak_on_main_only",
]
