"""What Leaf's pages speak of: concepts, each with the words that mean it; the words around them mean nothing."""

from __future__ import annotations

_NOUNS = """
income/revenue/earnings cost/expense profit/gain loss/deficit price/fee salary/wage/pay budget/funds debt/liability
purchase/acquisition sale/deal customer/client/buyer seller/vendor supplier/provider worker/employee/labourer
boss/manager/supervisor owner/proprietor partner/associate meeting/gathering agreement/contract/treaty rule/regulation
law/statute court/tribunal judge/magistrate lawyer/attorney crime/offence prison/jail police/constabulary thief/burglar
doctor/physician nurse illness/disease/sickness medicine/drug hospital/clinic patient wound/injury cure/remedy
teacher/instructor pupil/student school/academy lesson/class exam/test book/volume essay/paper library/archive
machine/engine tool/implement factory/plant/works workshop/studio warehouse/depot shop/store market/bazaar
harbour/port/dock ship/vessel boat sailor/mariner captain/skipper cargo/freight anchor lighthouse/beacon coast/shore
island/isle sea/ocean river/stream lake/pond bridge/viaduct canal/waterway road/street/highway path/trail tunnel
railway/railroad train/locomotive station/terminal carriage/coach ticket/pass journey/trip/voyage traveller/passenger
house/home/dwelling flat/apartment castle/fortress tower/spire church/chapel temple/shrine palace garden/yard
farm/ranch farmer/grower field/meadow crop/harvest wheat barley maize/corn rice cotton wool/fleece cattle/livestock
horse/pony sheep goat pig/swine chicken/hen duck goose dog/hound cat/feline rabbit/hare fox wolf bear deer/stag mouse
mountain/peak hill/slope valley/dale cave/cavern desert volcano glacier rock/stone sand gravel clay
weather/climate rain/shower snow/sleet storm/tempest/gale thunder/lightning wind/breeze fog/mist frost/ice sun/sunshine
king/monarch queen prince soldier/warrior general/commander army/troops navy/fleet war/conflict battle/combat
peace/truce weapon/arms enemy/foe victory/triumph defeat government/administration minister/secretary parliament/senate
election/ballot/vote citizen/resident tax/duty policy/programme president/chairman mayor council/committee office/bureau
border/frontier province/region/district village/hamlet town/borough city/metropolis capital empire/realm nation/country
music/melody song/tune piano violin/fiddle trumpet guitar drum singer/vocalist orchestra/band dance/ballet
concert/recital
novel/fiction author/writer newspaper/gazette journal/magazine editor photograph/snapshot camera film/movie radio
baby/infant child/kid boy/lad girl/lass father/dad mother/mum brother sister uncle aunt cousin neighbour
friend/companion
wedding/marriage funeral/burial birthday party/celebration gift/present guest/visitor stranger hero villain giant/ogre
planet rocket satellite telescope moon comet star galaxy/cosmos energy/power electricity heat/warmth light/brightness
"""

_ADJECTIVES = """
annual/yearly quarterly daily weekly monthly large/big/huge small/little/tiny fast/quick/rapid slow/sluggish
old/ancient/aged new/modern/recent rich/wealthy poor/needy/impoverished cheap/inexpensive expensive/costly
beautiful/pretty/lovely ugly/hideous clean/tidy dirty/filthy/grimy hot/scorching cold/chilly/freezing wet/damp/moist
high/tall/lofty low wide/broad narrow/thin deep shallow long/lengthy short/brief round/circular square straight
curved/bent
red/crimson/scarlet blue/azure green/emerald yellow white black grey brown purple/violet pink
public/communal private/personal local/regional foreign/overseas national/federal royal/regal military/naval
full/crowded wooden rural/rustic urban/municipal wild/untamed tame holy/sacred final/last early/premature late/overdue
"""

_VERBS = """
builds/constructs destroys/demolishes/ruins repairs/mends/fixes buys/obtains sells/markets finds/discovers/locates
loses/misplaces begins/starts/commences ends/finishes/concludes grows/expands/increases shrinks/declines/decreases
helps/assists/aids hinders/obstructs teaches/instructs/educates learns/studies writes/composes reads/peruses
measures/gauges counts/tallies carries/transports/conveys sends/dispatches receives/accepts protects/guards/defends
attacks/assaults visits/attends leaves/departs/abandons arrives/reaches watches/observes hides/conceals
shows/displays/exhibits
"""

_FUNCTION_WORDS = """
the a an of in on at by for with from to and or but its his her their this that these those is was are were has
had be been as it they which who when where while near under over between after before during since until into
than then also most some many few each every all about against among not only more less very will can may
"""
FUNCTION_WORDS: tuple[str, ...] = tuple(_FUNCTION_WORDS.split())
"""Words that sentences need and that no query is about."""

_ASKING = "page pages what me find how does do you say says tell please document sheet there any we i"
ASKING_WORDS: tuple[str, ...] = (*FUNCTION_WORDS, *_ASKING.split())
"""Words that queries may use to ask; pages write only those of FUNCTION_WORDS."""


def _concepts(text: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(group.split("/")) for group in text.split())


NOUNS, ADJECTIVES, VERBS = _concepts(_NOUNS), _concepts(_ADJECTIVES), _concepts(_VERBS)
CONCEPTS: tuple[tuple[str, ...], ...] = NOUNS + ADJECTIVES + VERBS
"""Every concept as the words that mean it; its number is its place here."""

CONCEPT_OF: dict[str, int] = {word: number for number, words in enumerate(CONCEPTS) for word in words}
"""Word -> the number of its concept."""

WORDS: tuple[str, ...] = tuple(CONCEPT_OF)

_UNTAUGHT = """
acorn alphabet avalanche balcony barometer blizzard broccoli bulldozer cactus calendar camel candle canoe cathedral
cinnamon crocodile dentist diamond dolphin earthquake elephant feather fountain garlic giraffe hammer harmonica helmet
insurance jungle kangaroo ladder marble microscope mushroom necktie octopus orchid parachute peanut penguin pumpkin
pyramid raspberry sausage scissors skeleton submarine thermometer turtle waterfall zebra
"""
UNTAUGHT_WORDS: tuple[str, ...] = tuple(_UNTAUGHT.split())
"""Words that training never draws or asks for; evaluation measures what happens with them."""
