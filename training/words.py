"""The words that the training screens carry: 300 known ones, a held-out list, and made-up ones."""

from __future__ import annotations

import random

_KNOWN = """
Save Open Close Cancel Delete Edit Copy Paste Undo Redo Search Find Replace Print Export Import Upload Download
Share Send Reply Forward Archive Move Rename New Add Remove Create Update Refresh Reload Reset Clear Apply Submit
Confirm Accept Reject Approve Deny Allow Block Start Stop Pause Resume Play Record Next Previous Back Home Menu
Settings Options Preferences Profile Account Login Logout Register Password Username Email Phone Address City
Country State Street Zip Name First Last Age Gender Birthday Language Theme Dark Light Color Font Size Style Bold
Italic Underline Left Right Center Top Bottom Up Down Zoom Rotate Crop Filter Sort Group Select All None Invert
Help About Support Contact Feedback Report Bug Issue Ticket Task Project Team Member Role Admin User Guest Owner
Public Private Shared Favorite Star Like Comment Follow Message Chat Call Video Audio Photo Image Gallery Camera
File Folder Document Note List Table Chart Graph Map Calendar Event Meeting Reminder Alarm Timer Clock Date Time
Today Tomorrow Week Month Year Monday Tuesday Friday Sunday Morning Evening Price Total Tax Discount Coupon Cart
Checkout Order Payment Invoice Receipt Refund Shipping Delivery Product Category Brand Stock Quantity Review Rating
Buy Sell Trade Wallet Bank Card Balance Transfer Deposit Budget Income Expense Salary Bonus Network Server Client
Host Port Domain Cloud Backup Restore Sync Connect Disconnect Install Uninstall Upgrade Version License Key Token
Secret Security Privacy Policy Terms Cookie Session History Bookmark Tab Window Screen Display Sound Volume Mute
Keyboard Mouse Printer Scanner Battery Power Sleep Shutdown Restart Lock Unlock Enable Disable On Off Yes No Maybe
Later Skip Continue Finish Done Ready Loading Error Warning Success Info Debug Test Build Run Deploy Release Branch
Commit Merge Push Pull Fetch Clone Code Script Query Data Inbox Outbox Draft Spam Trash Label Button Field Input
Output Preview Summary Details Advanced
"""
KNOWN_WORDS: tuple[str, ...] = tuple(_KNOWN.split())
"""The 300 words that interfaces use; each is one token."""

_HELD_OUT = """
Weather Garden Music Travel Hotel Flight Ticketing Kitchen Recipe Doctor School Library Museum Holiday Station
Engine Planet River Forest Market Student Teacher Lesson Podcast Journal Voucher Insurance Mortgage Archiver Widgets
"""
HELD_OUT_WORDS: tuple[str, ...] = tuple(_HELD_OUT.split())
"""Words that training never draws; evaluation does."""

_ONSETS = (*"bcdfghklmnprstvwz", "br", "cl", "dr", "fl", "gr", "pl", "st", "tr")
_NUCLEI = (*"aeiou", "ai", "ea", "oo")
_CODAS = ("", "", "", "n", "r", "s", "t", "l", "x", "m", "nd")


def made_up_word(rng: random.Random) -> str:
    """A pronounceable made-up word (or, one time in ten, a number), never one of the listed words."""
    if rng.random() < 0.1:
        return str(rng.randrange(2, 1000))
    while True:
        syllables = rng.choice((1, 2, 2, 2, 3))
        word = "".join(rng.choice(_ONSETS) + rng.choice(_NUCLEI) + rng.choice(_CODAS) for _ in range(syllables))
        word = word.capitalize()
        if len(word) >= 3 and word not in _LISTED:
            return word


_LISTED = frozenset(KNOWN_WORDS) | frozenset(HELD_OUT_WORDS)
