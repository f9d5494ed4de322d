"""From facts about an image to samples of a task: builders read files, the wording is made here.

Modules:

    prompts            questions as data, and the parts of answers
    detection          samples of a detection file: detection, counting, names, visual prompts
    absence            which names may be asked for as absent, and how likely
    counting           TallyQA's questions with numbers for answers
    referring          referring expressions, and the reader of REFER's lists
    expression_table   expressions that come one by one, brought together by image
    grounding          captions whose phrases name objects
    mentions           regions that a text mentions by number
    detokenise         English tokens back to text, with objects among the words
    ocr                text regions and what is written in them
"""
