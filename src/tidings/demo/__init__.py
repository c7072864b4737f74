"""What `tidings up` adds so that a newcomer sees something: a mail catcher, and a project to play with.

Nothing here is needed to run Tidings, and no other room knows this one but `app`.
"""
