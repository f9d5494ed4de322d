"""How the shipped small base is made; tied to nothing else.

build         the recipe: its settings, its four phases, the file it writes
drawn_images  drawn scenes, and what the towers are asked about them
towers        pre-training of the two vision towers on drawn scenes
decoder       training of the decoder on lists, with captions of drawn scenes among them
lookup_data   the lists and the questions about them
lookup_init   the start of the decoder, laid out so that look-up is learned in minutes
"""
