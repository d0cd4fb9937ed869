"""The procedural egocentric world: still pictures with every label, their questions, and writers of published layouts.

factors → which values each split may use · world → what a picture shows · frame, reaching, hands, placing, objects → where and
what things are · background, draw → the picture · journal, scenes → folders on disk · questions → what is asked about them.
"""
