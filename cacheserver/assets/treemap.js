// A squarified treemap: rectangles of given areas that fill one, each as square as can be had.
//
// Law of this file: numbers in, numbers out. From Bruls, Huizing and van Wijk, "Squarified Treemaps" (2000): a row along
// the shorter side takes one item more as long as that makes the worst of its rectangles no thinner.

export function squarify(areas, x, y, width, height) {
  // Areas of any scale, the largest first; gives a {x, y, width, height} for each.
  const total = areas.reduce((sum, area) => sum + area, 0);
  if (!(total > 0) || !(width > 0) || !(height > 0)) return areas.map(() => ({ x, y, width: 0, height: 0 }));
  const scale = (width * height) / total;
  const placed = [];
  const room = { x, y, width, height };
  let row = [];
  for (const area of areas.map((one) => Math.max(one * scale, 1e-9))) {
    const side = Math.min(room.width, room.height);
    if (row.length && worst([...row, area], side) > worst(row, side)) {
      placed.push(...place(row, room));
      row = [];
    }
    row.push(area);
  }
  placed.push(...place(row, room));
  return placed;
}

function worst(row, side) {
  const sum = row.reduce((all, one) => all + one, 0);
  const square = (side / sum) ** 2;
  return Math.max(square * Math.max(...row), 1 / (square * Math.min(...row)));
}

function place(row, room) {
  // Takes the row's part of the room away from it.
  const sum = row.reduce((all, one) => all + one, 0);
  const lies = room.width < room.height; // along the upper edge; else it stands at the left one
  const thickness = lies ? sum / room.width : sum / room.height;
  let along = lies ? room.x : room.y;
  const placed = row.map((area) => {
    const length = area / thickness;
    const one = lies
      ? { x: along, y: room.y, width: length, height: thickness }
      : { x: room.x, y: along, width: thickness, height: length };
    along += length;
    return one;
  });
  if (lies) {
    room.y += thickness;
    room.height = Math.max(0, room.height - thickness);
  } else {
    room.x += thickness;
    room.width = Math.max(0, room.width - thickness);
  }
  return placed;
}

export function neighbour(boxes, from, direction) {
  // The index of the box that is nearest in a direction ("ArrowLeft", …); the same where there is none.
  const [ax, ay] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[direction];
  const middle = (box) => [box.x + box.width / 2, box.y + box.height / 2];
  const [fx, fy] = middle(boxes[from]);
  let best = from;
  let least = Infinity;
  boxes.forEach((box, index) => {
    const [x, y] = middle(box);
    const ahead = (x - fx) * ax + (y - fy) * ay;
    const aside = Math.abs((x - fx) * ay) + Math.abs((y - fy) * ax);
    if (index !== from && ahead > 0.5 && ahead + 2 * aside < least) {
      least = ahead + 2 * aside;
      best = index;
    }
  });
  return best;
}
