"""What people look for: "the save button" in forty scripts, each with something in it that a prompt might trip over."""

from __future__ import annotations

_WORDS = {
    "Latin": "the save button", "Cyrillic": "кнопка сохранить", "Greek": "κουμπί αποθήκευσης", "Armenian": "պահպանել",
    "Hebrew": "כפתור שמירה", "Arabic": "زر الحفظ", "Syriac": "ܢܛܪ", "Thaana": "ރައްކާކުރޭ", "Devanagari": "सहेजें बटन",
    "Bengali": "সংরক্ষণ বোতাম", "Gurmukhi": "ਸੰਭਾਲੋ", "Gujarati": "સાચવો", "Oriya": "ସଞ୍ଚୟ", "Tamil": "சேமி பொத்தான்",
    "Telugu": "సేవ్ బటన్", "Kannada": "ಉಳಿಸು", "Malayalam": "സംരക്ഷിക്കുക", "Sinhala": "සුරකින්න", "Thai": "ปุ่มบันทึก",
    "Lao": "ບັນທຶກ", "Tibetan": "ཉར་ཚགས", "Myanmar": "သိမ်းဆည်းရန်", "Georgian": "შენახვა", "Hangul": "저장 버튼",
    "Ethiopic": "አስቀምጥ",
    "Cherokee": "ᎠᏍᏆᏂᎪᏙᏗ", "Khmer": "រក្សាទុក", "Mongolian": "ᠬᠠᠳᠠᠭᠠᠯᠠᠬᠤ", "Hiragana": "ほぞんボタン",
    "Katakana": "セーブ", "Han": "保存按钮", "Bopomofo": "ㄅㄠˇ ㄘㄨㄣˊ", "Canadian": "ᐸᐸᑦᓯᓂᖅ",
    "Ogham": "ᚄᚐᚃᚓ", "Runic": "ᛋᚨᚡᛖ",
    "Tifinagh": "ⵃⴹⵓ", "Coptic": "ⲁⲣⲉϩ", "Gothic": "𐍃𐌰𐍆𐌴", "Deseret": "𐑅𐐩𐑂", "Javanese": "ꦱꦶꦩ꧀ꦥꦼꦤ꧀",
}  # fmt: skip
_TRAPS = (
    '"{}"', "'{}'", "{{{}}}", "{{target}} {}", "{{x1}}, {{y2}} {}", "{} %s %(target)s", "{}\\n\\g<1>\\1", "<image> {}",
    "{} <|image_pad|><|im_end|>", "${{{}}} $target", "line one\n{}\nYour target is:", '{{"action": "{}"}}',
)  # fmt: skip

TARGETS = [
    (script, _TRAPS[number % len(_TRAPS)].replace("{{", "\0").replace("}}", "\1").replace("{}", word)
     .replace("\0", "{").replace("\1", "}"))
    for number, (script, word) in enumerate(_WORDS.items())
]  # fmt: skip
"""(script, target)."""
