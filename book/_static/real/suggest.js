/* What the page suggests: the subject of a question, other wordings, and neighbours to ask about. */

const KINDS = [
  ["France", "Germany", "Japan", "Italy", "Spain", "Egypt", "China", "Canada", "Brazil", "India", "Peru", "Kenya"],
  ["Paris", "Rome", "London", "Berlin", "Tokyo", "Madrid", "Cairo", "Beijing"],
  ["Eiffel Tower", "Colosseum", "Louvre", "Big Ben", "Taj Mahal", "Statue of Liberty"],
  ["Albert Einstein", "Isaac Newton", "Marie Curie", "Charles Darwin", "William Shakespeare"],
  ["gold", "silver", "iron", "oxygen", "hydrogen", "carbon"],
];
const UNRELATED = ["What is the capital of Japan?", "Who wrote Romeo and Juliet?", "What color is the sky?"];
const SMALL = /^(what|who|where|when|which|why|how|is|are|the|a|an|of|in|on|to|do|does|did|was|were|it|i)$/i;

/** The last run of capitalised words that does not begin the question; else its last word that is not small. */
export function subjectOf(question) {
  const words = [...question.matchAll(/[\p{L}\p{N}'’.-]*[\p{L}\p{N}]/gu)];
  const proper = words.map(([w], i) => i > 0 && /^\p{Lu}/u.test(w));
  let end = proper.lastIndexOf(true);
  if (end >= 0) {
    let start = end;
    while (proper[start - 1]) start--;
    return question.slice(words[start].index, words[end].index + words[end][0].length);
  }
  return words.map(([w]) => w).filter((w) => !SMALL.test(w)).at(-1) ?? "";
}

/** The prompt with {} where the subject stands (the last time), or a sentence that says what is wrong. */
export function asPrompt(question, subject, target) {
  if (!question.trim()) return { wrong: "Type a question first." };
  if (/[{}]/.test(question + subject)) return { wrong: "The question must not contain braces." };
  if (!subject.trim()) return { wrong: "Type the subject: what the question is about." };
  const at = question.lastIndexOf(subject);
  if (at < 0) return { wrong: `The subject “${subject}” does not stand in the question. Type it as it is written there.` };
  if (!target.trim()) return { wrong: "Type what the model should say instead." };
  return { prompt: question.slice(0, at) + "{}" + question.slice(at + subject.length) };
}

/** Questions to ask before and after: this one, three other wordings, three neighbours. */
export function questionsFor(question, subject, chat) {
  const around = chat
    ? [`Please tell me: ${question}`, `I was wondering: ${question}`, `${question} Answer in one sentence.`]
    : [`As everybody knows, ${question}`, `It is a fact: ${question}`, `Remember: ${question}`];
  const kind = KINDS.find((names) => names.includes(subject));
  const others = kind ? kind.filter((name) => name !== subject).slice(0, 3).map((name) => question.replace(subject, name))
    : UNRELATED.filter((other) => other !== question);
  const row = (kind) => (text) => ({ kind, text, chat });
  return [question].map(row("asked")).concat(around.map(row("reworded")), others.map(row("neighbour")));
}
