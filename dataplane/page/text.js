// Writes a growing text into the page: paragraphs, headings, list items, fenced code; **bold** and `code` within a line.
// Text becomes text nodes only, never markup. Work per piece depends on the piece, not on what stands there already: only
// the unfinished line is drawn again, and long blocks are continued in new ones.

const LINE_CUT = 1_500;
const BLOCK_CUT = 6_000;
// A line that begins like this could still become a heading, an item or a fence: it is held until that is known.
const UNDECIDED = /^ {0,12}(?:#{1,6}|[-*+]|\d{1,4}[.)]?|`{1,2})?$/;
const FENCE = /^ {0,3}(`{3,})\s*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6}) +(.*)$/;
const ITEM = /^( {0,12})([-*+]|\d{1,4}[.)]) +(.*)$/;
const INLINE = /(`+)(?!`)(.+?)(?<!`)\1(?!`)|\*\*(?=\S)(.+?)\*\*/g;

/** The nodes of one line: text, and elements that hold only text. */
export function inline(line) {
  const nodes = [];
  let from = 0;
  for (const match of line.matchAll(INLINE)) {
    if (match.index > from) nodes.push(document.createTextNode(line.slice(from, match.index)));
    const element = document.createElement(match[1] ? "code" : "strong");
    element.textContent = match[1] ? match[2] : match[3];
    nodes.push(element);
    from = match.index + match[0].length;
  }
  if (from < line.length) nodes.push(document.createTextNode(line.slice(from)));
  return nodes;
}

export class Writer {
  #root;
  #line = "";
  #block = null;
  #blockKind = "";
  #blockLength = 0;
  #open = null;
  #fence = 0;

  constructor(root) {
    this.#root = root;
  }

  /** Appends text. */
  write(text) {
    const lines = text.split("\n");
    for (let i = 0; i < lines.length; i += 1) {
      this.#line += lines[i];
      if (i < lines.length - 1) this.#finishLine();
    }
    this.#paint(false);
  }

  /** The text is complete: what was held is shown. */
  end() {
    if (this.#line !== "") this.#paint(true);
  }

  /** Removes everything. */
  clear() {
    this.#root.replaceChildren();
    this.#line = "";
    this.#leaveBlock();
    this.#fence = 0;
  }

  #finishLine() {
    const line = this.#line;
    const fence = FENCE.exec(line);
    if (this.#fence > 0) {
      if (fence && fence[1].length >= this.#fence && fence[2] === "") {
        this.#fence = 0;
        this.#leaveBlock();
      } else {
        this.#code(`${line}\n`);
      }
    } else if (fence && this.#open === null) {
      this.#startCode(fence);
    } else if (line.trim() === "" && this.#open === null) {
      this.#leaveBlock();
    } else {
      this.#paint(true);
      if (this.#blockKind !== "p") this.#leaveBlock();
    }
    this.#line = "";
    this.#open = null;
  }

  // Draws the unfinished line as far as it can be told what it is.
  #paint(complete) {
    if (this.#fence > 0) {
      if (complete && !FENCE.test(this.#line)) this.#code(this.#line);
      return;
    }
    if (this.#line === "") return;
    if (this.#open === null) {
      const undecided = this.#line.trim() === "" || UNDECIDED.test(this.#line) || FENCE.test(this.#line);
      if (undecided && !complete) return;
      this.#startLine();
    }
    while (this.#line.length > LINE_CUT) {
      const space = this.#line.lastIndexOf(" ", LINE_CUT);
      const cut = space > 0 ? space + 1 : cutBetweenCharacters(this.#line, LINE_CUT);
      this.#open.replaceChildren(...inline(this.#line.slice(0, cut)));
      this.#line = this.#line.slice(cut);
      this.#grow(cut);
      this.#open = this.#block.appendChild(document.createElement("span"));
    }
    this.#open.replaceChildren(...inline(this.#line));
  }

  #startLine() {
    const heading = HEADING.exec(this.#line);
    const item = heading ? null : ITEM.exec(this.#line);
    if (heading) {
      // All of one rank: an answer may begin with any level, and a page's headings should not skip one.
      this.#startBlock("h", "h2");
      this.#block.className = `level-${heading[1].length}`;
      this.#line = heading[2];
    } else if (item) {
      this.#startBlock("item", "p");
      this.#block.className = `item depth-${Math.min(3, Math.floor(item[1].length / 2))}`;
      const mark = this.#block.appendChild(document.createElement("span"));
      mark.className = "mark";
      mark.textContent = /\d/.test(item[2]) ? `${item[2]} ` : "• ";
      this.#line = item[3];
    } else if (this.#blockKind === "p") {
      this.#block.append("\n");
      this.#grow(1);
    } else {
      this.#startBlock("p", "p");
    }
    this.#open = this.#block.appendChild(document.createElement("span"));
  }

  #startBlock(kind, tag) {
    this.#block = this.#root.appendChild(document.createElement(tag));
    this.#blockKind = kind;
    this.#blockLength = 0;
  }

  #leaveBlock() {
    this.#block = null;
    this.#blockKind = "";
    this.#open = null;
  }

  // A block that has grown long goes on in another one, so that drawing a frame never means laying out all of the answer.
  #grow(length) {
    this.#blockLength += length;
    if (this.#blockLength < BLOCK_CUT || this.#blockKind !== "p") return;
    this.#startBlock("p", "p");
    this.#block.className = "on";
  }

  #startCode(fence) {
    this.#fence = fence[1].length;
    const figure = this.#root.appendChild(document.createElement("figure"));
    const language = fence[2].trim().split(/\s/)[0];
    if (language !== "") figure.appendChild(document.createElement("figcaption")).textContent = language.slice(0, 40);
    const pre = figure.appendChild(document.createElement("pre"));
    pre.tabIndex = 0;
    this.#block = pre;
    this.#blockKind = "code";
    this.#open = null;
    this.#blockLength = BLOCK_CUT;
  }

  #code(text) {
    if (this.#blockLength >= BLOCK_CUT) {
      this.#block.appendChild(document.createElement("code")).append("");
      this.#blockLength = 0;
    }
    const chunk = this.#block.lastChild;
    if (chunk.lastChild) chunk.lastChild.appendData(text);
    else chunk.append(text);
    this.#blockLength += text.length;
  }
}

// Not between the two halves of one character.
function cutBetweenCharacters(text, at) {
  const code = text.charCodeAt(at - 1);
  return code >= 0xd800 && code <= 0xdbff ? at - 1 : at;
}
