"""Pages, plots and annotated images: what people look at.

Three pages, each from finished artifacts or plain values:

evaluation_report   the page of evaluated runs: metrics, curves, detectors, judged answers
shard_report        the page of `fo1 inspect`: what a shard artifact holds
proposals_report    the page of `fo1 proposals diff`: two caches of proposals beside each other

What they are put together from:

metric_tables       tables of metrics: of runs on a benchmark, of detectors
training_plots      curves of what a training run logged and of its held-out metrics
judged_cards        judged answers drawn on their images
proposals_tables    tables and plots of two caches of proposals
proposals_cards     images with the boxes of both caches
answer_image        one question about one image, answered and drawn
html_page           blocks of a page, its rendering, tables as text
page_template       the HTML around the blocks
drawing             boxes with tags on images, images as data URIs
plots               small plots as data URIs
"""
