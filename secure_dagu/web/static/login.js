// Log in, or make the first account; then go where somebody wanted to go.

import { api, call } from "./api.js";

const form = document.querySelector("[data-login]");
const again = form.querySelector("[data-again]");
const password = form.querySelector("[name=password]");

again?.addEventListener("input", compare);
password.addEventListener("input", () => again && compare());

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = form.querySelector("button");
  button.disabled = true;
  form.querySelector("[data-error]").textContent = "";
  try {
    await call("POST", `${api}/auth/${form.dataset.login}`, { ...Object.fromEntries(new FormData(form)), cookie: true });
    location.assign(form.dataset.home);
  } catch (error) {
    form.querySelector("[data-error]").textContent = error.message;
    button.disabled = false;
    password.select();
  }
});

function compare() {
  again.setCustomValidity(again.value === password.value ? "" : "The two passwords differ.");
}
