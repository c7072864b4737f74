"""Pages for the people who get messages: one to unsubscribe on, one to choose preferences on.

    GET  /u/{token}   asks whether to unsubscribe; changes nothing, since mail scanners open every link
    POST /u/{token}   unsubscribes: from the page's button, or by a mail program with one click (RFC 8058)
    GET  /p/{token}   the preferences of the user whom the token names
    POST /p/{token}   saves them

Nobody signs in: the token, which only we can make, says whose page it is. Pages are whole HTML documents that need no
JavaScript and load nothing. `words.py` has the languages, `form.py` what a form means, `routes.py` the rest.
"""
