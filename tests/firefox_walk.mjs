// One walk through the page of continuous mode in Firefox, by WebDriver BiDi:
//     node firefox_walk.mjs FIREFOX URL
// loads it, edits a text, runs, sees a preview and the result, runs again and stops. Ends with status 1 where that fails.

import assert from "node:assert/strict";
import process from "node:process";

import puppeteer from "puppeteer-core";

const [executablePath, url] = process.argv.slice(2);
const patience = 60_000; // a deadline, not a delay

const browser = await puppeteer.launch({ browser: "firefox", executablePath, headless: true, timeout: patience });
try {
  const page = await browser.newPage();
  const complaints = [];
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("console", (message) => { if (message.type() === "error") complaints.push(message.text()); });
  page.setDefaultTimeout(patience);

  const says = (selector, text) => page.waitForFunction(
    (where, what) => document.querySelector(where)?.textContent.includes(what), {}, selector, text);
  const picture = (selector, width) => page.waitForFunction(
    (where, wide) => document.querySelector(where)?.naturalWidth === wide, {}, selector, width);

  await page.goto(url);
  await says("#server", "ComfyUI 0.");

  const text = await page.waitForSelector("#field-2-text");
  await text.evaluate((area) => area.select());
  await text.type("a fox in the snow");
  await says("#file", "(changed)");

  await page.click("#run");
  await says("#state", "Running");
  await picture("#preview", 128);
  assert.match(await page.title(), /^\d+% – /);

  await says("#state", "Done");
  await picture("#outputs img", 256);

  await page.click("button[aria-label^='Random seed']"); // else ComfyUI has all of it in its cache
  await says("#note-5-seed", "A new one for every run.");
  await page.click("#run");
  await says("#progress-title", "Running");
  await page.click("#stop");
  await says("#runs li", "Stopped");

  assert.deepEqual(complaints, []);
} finally {
  await browser.close();
}
