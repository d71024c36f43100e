// Bytes as text and back, without loss: a text box takes no broken UTF-8 and changes some control characters, so a byte
// that is no part of a character stands in it as one sign of the private range, U+F700 + byte.
(() => {
  const page = (window.postx.playground ??= {});
  const utf8 = new TextDecoder("utf-8", { fatal: true });
  const odd = (byte) => String.fromCharCode(0xf700 + byte);
  const plain = (text) => !/[\uf700-\uf7ff\0-\x08\x0b-\x1f\x7f]/.test(text);

  page.text = (bytes) => {
    let [text, at] = ["", 0];
    while (at < bytes.length) {
      const first = bytes[at];
      if (first < 0x7f && (first > 31 || first === 9 || first === 10)) {
        text += String.fromCharCode(first);
        at++;
        continue;
      }
      const long = first < 0x80 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
      let sign = null;
      try {
        sign = utf8.decode(Uint8Array.from(bytes.slice(at, at + long)));
      } catch {
        sign = null; // no character begins here
      }
      const whole = sign !== null && plain(sign) && page.bytes(sign).length === long;
      text += whole ? sign : odd(first);
      at += whole ? long : 1;
    }
    return text;
  };

  const encoder = new TextEncoder();
  const own = /[\uf700-\uf7ff]/;
  page.bytes = (text) => {
    if (!own.test(text)) return Array.from(encoder.encode(text)); // sign by sign, three thousand bytes keep the next key waiting
    return [...text].flatMap((sign) => (own.test(sign) ? [sign.charCodeAt(0) - 0xf700] : [...encoder.encode(sign)]));
  };

  // One byte as a reader sees it.
  const NAMES = { 0: "end", 9: "⇥", 10: "⏎", 32: "␣" };
  page.name = (byte) =>
    NAMES[byte] ?? (byte > 32 && byte < 127 ? String.fromCharCode(byte) : byte.toString(16).padStart(2, "0"));
})();
