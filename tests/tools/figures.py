"""What is looked for in the figures of a page, as JavaScript that returns a list of faults in words."""

# In every frame of every figure: labels that lie on each other, or leave the figure. (A text in several colors is laid
# out as several texts with gaps for each other.) Each slider is walked from end to
# end (12 stops where it has more) while the others stand at their start, and again at their end.
FRAMES = """() => {
    const found = new Map();
    const put = (input, value) => { input.value = value; input.dispatchEvent(new Event('input', { bubbles: true })); };
    const pick = (input) => { input.checked = true; input.dispatchEvent(new Event('input', { bubbles: true })); };
    [...document.querySelectorAll('figure.px-fig:not(.px-widget)')].forEach((figure, number) => {
      const svg = figure.querySelector('svg');
      if (!svg?.checkVisibility()) return;
      const rows = [...figure.querySelectorAll('.px-row')].map((row) => [...row.querySelectorAll('input')]).map((all) =>
        all[0].type === 'radio'
          ? { go: (i) => pick(all[i]), stops: all.map((_, i) => i), start: all.findIndex((e) => e.defaultChecked) }
          : { go: (i) => put(all[0], i), start: +all[0].defaultValue,
              stops: [...new Set(Array.from({ length: 12 }, (_, i) => Math.round(all[0].max * i / 11)))] });
      const look = () => {
        const [own, drawn] = [figure, svg].map((e) => e.getBoundingClientRect()); // a phone's picture is the wider one
        const room = { left: Math.min(own.left, drawn.left), right: Math.max(own.right, drawn.right), top: own.top };
        const words = [...svg.querySelectorAll('text')]
          .filter((e) => e.textContent.trim() && e.checkVisibility() && !e.closest('.px-grip, .px-ghost'))
          .filter((e) => +getComputedStyle(e).opacity > 0.3 && e.getScreenCTM())
          .filter((e) => !/^\\s|\\s$|\\s\\s/.test(e.textContent))
          .map((e) => ({ e, text: e.textContent.trim(), box: e.getBoundingClientRect(),
                         level: Math.abs(e.getScreenCTM().b) < 0.01 }));
        const say = (what) => { if (!found.has(`figure ${number + 1}: ${what}`))
          found.set(`figure ${number + 1}: ${what}`, rows.map((row) => row.now)); };
        for (const { text, box } of words)
          if (box.left < room.left - 3 || box.right > room.right + 3 || box.top < room.top - 3)
            say(`${text} leaves it`);
        const level = words.filter((word) => word.level);
        level.forEach((a, i) => level.slice(i + 1).forEach((b) => {
          const wide = Math.min(a.box.right, b.box.right) - Math.max(a.box.left, b.box.left);
          const high = Math.min(a.box.bottom, b.box.bottom) - Math.max(a.box.top, b.box.top);
          const deep = high / Math.min(a.box.height, b.box.height);
          if (wide > 3 && deep > 0.45 && a.text !== b.text) say(`${a.text} on ${b.text}`);
        }));
      };
      const go = (row, stop) => { row.go(stop); row.now = stop; };
      const first = () => rows.forEach((row) => go(row, row.start));
      first();
      look();
      for (const row of rows) for (const others of ['start', 'end']) {
        rows.forEach((other) => go(other, others === 'start' ? other.start : other.stops.at(-1)));
        for (const stop of row.stops) { go(row, stop); look(); }
      }
      first();
    });
    return [...found].map(([what, at]) => `${what} (at ${at})`); }"""

# A line that is drawn on a heat map, which keeps its colors in the dark, is seen on it: half of it has 1.3:1 or more.
# On a dark page no spot of a heat map is brighter than the words.
FAINT = """async () => {
    const light = (c) => [0.2126, 0.7152, 0.0722].reduce((sum, share, i) => { const v = c[i] / 255;
      return sum + share * (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); }, 0);
    const paper = getComputedStyle(document.body).backgroundColor;
    const found = new Set();
    for (const [number, figure] of [...document.querySelectorAll('figure.px-fig')].entries())
      for (const image of figure.querySelectorAll('svg image')) {
        const room = image.getBoundingClientRect();
        if (!image.checkVisibility() || room.width < 40 || room.height < 40) continue;
        const picture = new Image();
        picture.src = image.getAttribute('href') ?? image.getAttribute('xlink:href');
        await picture.decode();
        const canvas = document.createElement('canvas');
        [canvas.width, canvas.height] = [picture.width, picture.height];
        const pen = canvas.getContext('2d', { willReadFrequently: true });
        pen.fillStyle = paper;
        pen.fillRect(0, 0, picture.width, picture.height);
        pen.filter = getComputedStyle(image).filter;
        pen.drawImage(picture, 0, 0);
        const spots = pen.getImageData(0, 0, picture.width, picture.height).data;
        let most = 0;
        for (let i = 0; i < spots.length; i += 4) most = Math.max(most, light(spots.subarray(i, i + 3)));
        const words = light(getComputedStyle(figure).color.match(/[\\d.]+/g).map(Number));
        if (words > 0.5 && most > 1.1 * words) found.add(`figure ${number + 1}: white of ${most.toFixed(2)}`);
        const upright = image.getScreenCTM().d > 0; // matplotlib turns an image over
        for (const line of image.closest('svg').querySelectorAll('path, line, polyline')) {
          const { stroke, strokeOpacity, opacity } = getComputedStyle(line);
          const color = stroke.match(/[\\d.]+/g)?.map(Number);
          if (!color || stroke === 'none' || strokeOpacity * opacity < 0.3 || !line.checkVisibility()) continue;
          const length = line.getTotalLength(), to = line.getScreenCTM(), ratios = [];
          for (let i = 1; to && length && i < 40; i++) {
            const at = line.getPointAtLength(length * i / 40).matrixTransform(to);
            const x = (at.x - room.left) / room.width, y = (at.y - room.top) / room.height;
            if (x < 0.02 || x > 0.98 || y < 0.02 || y > 0.98) continue;
            const pixel = pen.getImageData(Math.floor(x * picture.width),
              Math.floor((upright ? y : 1 - y) * picture.height), 1, 1).data;
            const [low, high] = [light(color), light(pixel)].sort((a, b) => a - b);
            ratios.push((high + 0.05) / (low + 0.05));
          }
          ratios.sort((a, b) => b - a);
          if (ratios.length > 9 && ratios[Math.floor(ratios.length / 2)] < 1.3)
            found.add(`figure ${number + 1}: ${stroke}`);
        }
      }
    return [...found].map((what) => `${what} is hardly seen on its heat map, or glares`); }"""
