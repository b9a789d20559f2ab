"""English stop words, which GPT-2's LAMBADA results exclude as answers (section 3.3). OpenAI's own
list is not published.
"""

STOP_WORDS = (
    "a about above after again against all also am an and any are as at be because been before "
    "being below between both but by can "
    "could did do does doing down during each even ever every few for from further get go got had "
    "has have having he her here hers "
    "herself him himself his how i if in into is it its itself just like may me might more most "
    "much must my myself no nor not now "
    "of off on once one only or other our ours ourselves out over own said same shall she should "
    "so some still such than that the "
    "their theirs them themselves then there these they this those though through to too under "
    "until up upon us very was we were "
    "what when where which while who whom whose why will with would yet you your yours yourself "
    "yourselves "
).split()
