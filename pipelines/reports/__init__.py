"""Pages, plots and annotated images."""
