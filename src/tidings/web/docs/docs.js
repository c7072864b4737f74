// Renders openapi.json for reading. Text from the document only ever becomes text nodes, never markup.

const METHODS = ["get", "post", "put", "patch", "delete"];
const MAX_DEPTH = 4;

/** An element with properties and children; strings become text. */
function el(name, properties = {}, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Text with `code` between backticks. */
function prose(text) {
  return (text ?? "").split("`").map((part, i) => (i % 2 ? el("code", {}, part) : part));
}

function paragraphs(text) {
  return (text ?? "").split(/\n\s*\n/).filter(Boolean).map((part) => el("p", {}, ...prose(part)));
}

function main(spec) {
  const resolve = (thing) => {
    for (let i = 0; thing?.$ref && i < 10; i++) {
      thing = thing.$ref.slice(2).split("/").reduce((at, key) => at?.[key.replace(/~1/g, "/").replace(/~0/g, "~")], spec);
    }
    return thing ?? {};
  };

  /** A schema's type in a few words. */
  function typeOf(given, depth = 0) {
    const schema = resolve(given);
    if (schema.const !== undefined) return JSON.stringify(schema.const);
    if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
    const either = schema.anyOf ?? schema.oneOf;
    if (either) return [...new Set(either.map((one) => typeOf(one, depth + 1)))].join(" | ");
    if (schema.allOf?.length) return typeOf(schema.allOf[0], depth + 1);
    if (schema.type === "array") return depth > 3 ? "list" : `list of ${typeOf(schema.items ?? {}, depth + 1)}`;
    if (schema.type === "object" && schema.additionalProperties && schema.additionalProperties !== true && !schema.properties)
      return `object of ${typeOf(schema.additionalProperties, depth + 1)}`;
    const type = Array.isArray(schema.type) ? schema.type.join(" | ") : schema.type ?? "any";
    return schema.format ? `${type} (${schema.format})` : type;
  }

  /** The object schema that holds fields, through lists and alternatives. */
  function objectIn(given) {
    const schema = resolve(given);
    if (schema.properties) return schema;
    if (schema.items) return objectIn(schema.items);
    for (const one of schema.anyOf ?? schema.oneOf ?? schema.allOf ?? []) {
      const found = objectIn(one);
      if (found) return found;
    }
    return null;
  }

  function limits(schema) {
    const known = { minLength: "at least %s characters", maxLength: "at most %s characters", minimum: "at least %s",
      maximum: "at most %s", minItems: "at least %s items", maxItems: "at most %s items", pattern: "matches %s" };
    const told = Object.keys(known).filter((key) => schema[key] !== undefined).map((key) => known[key].replace("%s", schema[key]));
    if (schema.default !== undefined && schema.default !== null) told.push(`default ${JSON.stringify(schema.default)}`);
    return told.join(", ");
  }

  function row(name, given, required, description) {
    const schema = resolve(given);
    const words = description ?? given.description ?? schema.description ?? "";
    const bounds = limits({ ...schema, ...given });
    return el("tr", {},
      el("td", {}, el("code", {}, name), required ? el("span", { className: "needed" }, "required") : null),
      el("td", {}, el("span", { className: "type" }, typeOf(given)), words ? el("div", {}, ...prose(words)) : null,
        bounds ? el("div", { className: "quiet" }, bounds) : null));
  }

  function fields(given, depth = 0) {
    const schema = objectIn(given);
    if (!schema) return el("p", { className: "type" }, typeOf(given));
    const table = el("table", {});
    for (const [name, field] of Object.entries(schema.properties)) {
      const line = row(name, field, schema.required?.includes(name));
      if (depth < MAX_DEPTH && objectIn(field))
        line.lastChild.append(el("details", {}, el("summary", {}, "fields"), el("div", { className: "fields" }, fields(field, depth + 1))));
      table.append(line);
    }
    return table;
  }

  /** A value that fits the schema, for the example request. */
  function example(given, depth = 0) {
    const schema = { ...resolve(given), ...given };
    if (schema.example !== undefined) return schema.example;
    if (schema.examples?.length) return schema.examples[0];
    if (schema.default !== undefined) return schema.default;
    if (schema.enum) return schema.enum[0];
    const either = schema.anyOf ?? schema.oneOf ?? schema.allOf;
    if (either?.length) return example(either[0], depth + 1);
    if (schema.properties && depth < MAX_DEPTH) {
      const entries = Object.entries(schema.properties).filter(
        ([name, field]) => schema.required?.includes(name) || field.examples || field.example !== undefined);
      return Object.fromEntries(entries.map(([name, field]) => [name, example(field, depth + 1)]));
    }
    switch (Array.isArray(schema.type) ? schema.type[0] : schema.type) {
      case "string": return schema.format === "date-time" ? "2030-01-01T09:00:00Z" : "text";
      case "integer": case "number": return schema.minimum ?? 1;
      case "boolean": return false;
      case "array": return schema.items ? [example(schema.items, depth + 1)] : [];
      default: return {};
    }
  }

  function curl(path, method, operation, parameters) {
    for (const p of parameters.filter((one) => one.in === "path")) {
      const given = p.example ?? p.schema?.examples?.[0] ?? p.schema?.example;
      if (given !== undefined) path = path.replace(`{${p.name}}`, encodeURIComponent(given));
    }
    const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;
    const lines = [`curl ${method === "get" ? "" : `-X ${method.toUpperCase()} `}${quote(location.origin + path)}`];
    if (!operation.security || operation.security.length) lines.push(`-H "Authorization: Bearer $TIDINGS_API_KEY"`);
    const content = resolve(operation.requestBody).content ?? {};
    const body = content["application/json"];
    if (content["application/octet-stream"]) lines.push("--data-binary @file");
    if (body) {
      const given = body.example ?? Object.values(body.examples ?? {})[0]?.value ?? example(body.schema ?? {});
      lines.push("-H 'Content-Type: application/json'", `-d ${quote(JSON.stringify(given, null, 2))}`);
    }
    return lines.join(" \\\n  ");
  }

  function describe(path, method, operation, shared) {
    const id = `${method}-${path}`.replace(/[^a-z0-9]+/gi, "-");
    const body = el("div", {}, ...paragraphs(operation.description ?? operation.summary));
    const parameters = [...(shared ?? []), ...(operation.parameters ?? [])].map(resolve);
    if (parameters.length) {
      body.append(el("h3", {}, "Parameters"), el("table", {}, ...parameters.map((p) =>
        row(`${p.name}`, p.schema ?? {}, p.required, `${p.description ?? ""} (${p.in})`.trim()))));
    }
    const request = resolve(operation.requestBody).content?.["application/json"]?.schema;
    if (request) body.append(el("h3", {}, "Body"), fields(request));
    body.append(el("h3", {}, "Answers"));
    const answers = el("table", {});
    for (const [status, given] of Object.entries(operation.responses ?? {})) {
      const answer = resolve(given);
      const schema = Object.values(answer.content ?? {})[0]?.schema;
      const cell = el("td", {}, ...prose(answer.description));
      if (schema && Number(status) < 400)
        cell.append(el("details", {}, el("summary", {}, typeOf(schema)), el("div", { className: "fields" }, fields(schema))));
      answers.append(el("tr", {}, el("td", {}, el("code", {}, status)), cell));
    }
    body.append(answers, el("h3", {}, "Example"), el("pre", { tabIndex: 0 }, el("code", {}, curl(path, method, operation, parameters))));
    const label = el("span", { className: `method ${method}` }, method);
    return { id, node: el("article", { id }, el("header", {}, label, el("code", {}, path)), body) };
  }

  document.title = `${spec.info.title} API`;
  document.querySelector("#intro").replaceChildren(el("h1", {}, `${spec.info.title} API`), ...paragraphs(spec.info.description));
  const groups = new Map((spec.tags ?? []).map((tag) => [tag.name, { about: tag.description, list: [] }]));
  for (const [path, item] of Object.entries(spec.paths)) {
    for (const method of METHODS.filter((name) => item[name])) {
      const name = item[method].tags?.[0] ?? "other";
      if (!groups.has(name)) groups.set(name, { list: [] });
      groups.get(name).list.push({ path, method, ...describe(path, method, item[method], item.parameters) });
    }
  }
  const operations = document.querySelector("#operations");
  const contents = document.querySelector("#contents");
  operations.replaceChildren();
  for (const [name, { about, list }] of groups) {
    if (!list.length) continue;
    operations.append(el("h2", { id: `tag-${name}` }, name.replaceAll("_", " ")), ...paragraphs(about), ...list.map((one) => one.node));
    contents.append(el("section", {}, el("h2", {}, name.replaceAll("_", " ")), el("ul", {}, ...list.map((one) =>
      el("li", {}, el("a", { href: `#${one.id}`, title: one.path },
        el("span", { className: `method ${one.method}` }, one.method), el("span", {}, one.path.replace("/api/v1", ""))))))));
  }
  document.querySelector("#filter").addEventListener("input", (event) => {
    const wanted = event.target.value.trim().toLowerCase();
    for (const link of contents.querySelectorAll("li")) {
      const shown = link.textContent.toLowerCase().includes(wanted);
      link.hidden = !shown;
      document.getElementById(link.firstChild.hash.slice(1)).hidden = !shown;
    }
    for (const group of contents.querySelectorAll("section")) group.hidden = !group.querySelector("li:not([hidden])");
  });
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
}

try {
  const answer = await fetch("openapi.json");
  if (!answer.ok) throw new Error(`openapi.json answered ${answer.status}`);
  main(await answer.json());
} catch (error) {
  document.querySelector("#operations").replaceChildren(el("p", {}, `The description of the API could not be loaded: ${error.message}`));
}
