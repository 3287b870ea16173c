"""The language of a prompt, by script and function words."""

from __future__ import annotations

import gzip
import json

import pytest

from noria.gateway.language import LANGUAGES, detect


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("How do I reset the password of my account?", "en"),
        ("Wie kann ich das Passwort für mein Konto ändern?", "de"),
        ("Comment est-ce que je peux changer le mot de passe ?", "fr"),
        ("¿Cómo puedo cambiar la contraseña de mi cuenta?", "es"),
        ("Come posso cambiare la password del mio account?", "it"),
        ("Como é que eu mudo a senha da minha conta, você sabe?", "pt"),
        ("Hoe kan ik het wachtwoord van mijn account wijzigen?", "nl"),
        ("Jak mogę zmienić hasło do mojego konta? Nie działa.", "pl"),
        ("Bu hesap için şifre nasıl değiştirilir?", "tr"),
        ("怎么重置我的密码？", "zh"),
        ("請問如何重設密碼", "zh"),
        ("パスワードを変更する方法を教えてください", "ja"),
        ("비밀번호를 어떻게 바꾸나요?", "ko"),
        ("Как сменить пароль?", "ru"),
        ("Як змінити свій пароль?", "uk"),
        ("كيف أغير كلمة المرور؟", "ar"),
        ("איך אני משנה סיסמה?", "he"),
        ("मैं अपना पासवर्ड कैसे बदलूँ?", "hi"),
        ("ฉันจะเปลี่ยนรหัสผ่านได้อย่างไร", "th"),
        ("Πώς αλλάζω τον κωδικό μου;", "el"),
        ("用Python写一个quicksort函数", "zh"),
    ],
)
def test_a_sentence_is_recognised(text, language) -> None:
    assert detect(text) == language
    assert language in LANGUAGES


@pytest.mark.parametrize("text", ["", "x = 1", "12345", "😀😀", "zzz qqq"])
def test_what_shows_no_language_has_none(text) -> None:
    assert detect(text) == ""


@pytest.mark.parametrize(
    ("file", "language", "least"),
    [("instruct/alpaca_en.jsonl.gz", "en", 0.97), ("instruct/zh_alpaca.jsonl.gz", "zh", 0.99)],
)
@pytest.mark.data
def test_real_prompts_are_recognised(shared_data, file, language, least) -> None:
    with gzip.open(shared_data / file, "rt") as lines:
        texts = [json.loads(line)["instruction"] for line, _ in zip(lines, range(2000), strict=False)]
    assert sum(detect(text) == language for text in texts) / len(texts) >= least
