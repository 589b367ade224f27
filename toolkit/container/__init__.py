"""Images and containers of this project.

A profile (:mod:`.profiles`) is every pin of one image; an image (:mod:`.images`) is a profile and the source
that is in it, and its name says both. :mod:`.build` makes it. :mod:`.mounts` and :mod:`.create` decide what a
container sees of the host and may do, :mod:`.running` stands for it, :mod:`.manage` finds it again.
:mod:`.verbs` lists what can be run, :mod:`.start` runs it; :mod:`.words` puts messages into the words of the
caller.
"""
